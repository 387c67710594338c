"""The peer of `benchmarks/probes.py` in PyTorch, no dependency of ours.

  PYTHON benchmarks/probes_torch.py JOBS.npz RESULT.npz

PYTHON has torch, NumPy and scikit-learn; `benchmarks/probes.py --torch=PYTHON`
starts it. One probe after the other: nn.Linear, AdamW, a cosine schedule,
minibatches by index, validated with scikit-learn's average precision, the best
of its evaluations kept.
"""

import copy
import sys
import time

import numpy as np
import torch
from sklearn.metrics import average_precision_score


def main() -> None:
  """Trains the probes that a file lists; leaves scores, logits, seconds."""
  with np.load(sys.argv[1]) as found:
    given = dict(found)
  x, y = torch.from_numpy(given["x"]), torch.from_numpy(given["y"])
  held = {s: torch.from_numpy(given[s]) for s in ("validation", "test")}
  labels = given["labels"]
  both = labels.any(axis=0) & ~labels.all(axis=0)
  scores, logits, began = [], [], time.perf_counter()
  for index, (rate, decay) in enumerate(given["settings"]):
    rows = torch.from_numpy(given[f"rows_{index}"].astype(np.int64))
    model = torch.nn.Linear(x.shape[1], y.shape[1])
    optimizer = torch.optim.AdamW(
      model.parameters(), lr=rate, weight_decay=decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(rows))
    loss = torch.nn.BCEWithLogitsLoss()
    best, kept = -1.0, None
    for step, chosen in enumerate(rows, 1):
      optimizer.zero_grad(set_to_none=True)
      loss(model(x[chosen]), y[chosen]).backward()
      optimizer.step()
      schedule.step()
      if step % int(given["length"]) == 0:
        with torch.no_grad():
          found = model(held["validation"]).numpy()
        quality = average_precision_score(labels[:, both], found[:, both])
        if quality > best:
          best, kept = quality, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    with torch.no_grad():
      logits.append(model(held["test"]).numpy())
    scores.append(best)
  taken = time.perf_counter() - began
  np.savez(sys.argv[2], scores=scores, logits=logits, seconds=taken)


if __name__ == "__main__":
  main()
