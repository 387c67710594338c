for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, i) => row.cells[i].dataset.value ??
    row.cells[i].textContent;
  heads.forEach((head, i) => head.firstChild.addEventListener("click", () => {
    const rows = [...table.tBodies[0].rows];
    const number = rows.some(row => "value" in row.cells[i].dataset);
    const was = head.getAttribute("aria-sort");
    const up = was ? was == "descending" : !number;
    const compare = number ? (a, b) => a - b : (a, b) => a.localeCompare(b);
    const known = row => !number || "value" in row.cells[i].dataset;
    rows.sort((a, b) => known(b) - known(a) || !known(a) ? known(b) - known(a)
      : (up ? 1 : -1) * compare(value(a, i), value(b, i)));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  }));
}
