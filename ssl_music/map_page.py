"""The map's page: HTML, style and script in one, with the data inside.

Points are drawn on a canvas. All that the page shows of names goes through
`textContent`, and the data cannot end the element that holds it, so that no
name is ever read as HTML.
"""

import json
from collections.abc import Mapping
from typing import Any

from ssl_music.drawing import PALETTE
from ssl_music.map_script import SCRIPT

_STYLE = """
:root { color-scheme: light dark; --line: #767676; --soft: #f3f3f3;
  --mark: #000; --paper: #fff; --text: #1a1a1a; }
@media (prefers-color-scheme: dark) { :root { --soft: #262626; --mark: #fff;
  --paper: #121212; --text: #e6e6e6; --line: #8a8a8a; } }
* { box-sizing: border-box; }
#sound-map { font: 16px/1.4 system-ui, sans-serif; color: var(--text);
  background: var(--paper); display: grid; grid-template-columns:
  minmax(0, 1fr) 22rem; gap: 1rem; height: 100vh; min-height: 32rem;
  padding: .75rem; overflow-wrap: anywhere; }
#sound-map .plot { position: relative; min-height: 20rem; }
#sound-map canvas { position: absolute; inset: 0; width: 100%; height: 100%;
  border: 1px solid var(--line); border-radius: 6px; cursor: crosshair;
  touch-action: none; }
#sound-map :focus-visible { outline: 3px solid #0072B2; outline-offset: 1px; }
#sound-map .zoom { position: absolute; right: .5rem; top: .5rem;
  display: flex; gap: .25rem; }
#sound-map .tip { position: absolute; pointer-events: none; max-width: 20rem;
  background: var(--paper); border: 1px solid var(--line); padding: .1rem .4rem;
  border-radius: 4px; font-size: .875rem; }
#sound-map aside { overflow: auto; display: flex; flex-direction: column;
  gap: .5rem; }
#sound-map h1 { font-size: 1.1rem; margin: 0; }
#sound-map h2 { font-size: 1rem; margin: .5rem 0 0; }
#sound-map .said { position: absolute; width: 1px; height: 1px;
  overflow: hidden; clip-path: inset(50%); }
#sound-map label { display: block; font-size: .875rem; margin-bottom: .3rem; }
#sound-map input, #sound-map select, #sound-map audio { width: 100%; }
#sound-map input, #sound-map select, #sound-map button { font: inherit;
  color: inherit; background: var(--soft); border: 1px solid var(--line);
  border-radius: 4px; padding: .25rem .5rem; }
#sound-map button { cursor: pointer; text-align: left; }
#sound-map ol, #sound-map ul { list-style: none; margin: 0; padding: 0; }
#sound-map li { display: flex; gap: .25rem; margin: .2rem 0; }
#sound-map li button:first-child { flex: 1; min-width: 0; }
#sound-map .playing { border-color: var(--mark); font-weight: 600; }
#sound-map .legend li { align-items: center; font-size: .875rem; }
#sound-map .legend svg { flex: none; }
#sound-map p { margin: 0; font-size: .875rem; }
@media (max-width: 50rem) { #sound-map { grid-template-columns: 1fr;
  grid-template-rows: 60vh auto; height: auto; } }
"""
_BODY = """
<div class="plot">
<canvas tabindex="0" role="application" aria-label="Map of tracks. Arrow keys go
 from track to track, Enter plays, plus and minus zoom, 0 shows all."></canvas>
<div class="zoom">
<button type="button" data-zoom="1.5" aria-label="Zoom in">+</button>
<button type="button" data-zoom="0.667" aria-label="Zoom out">−</button>
<button type="button" data-zoom="0">All</button>
</div>
<div class="tip" hidden></div><p class="said" role="status"></p></div>
<aside><h1>What sounds alike</h1>
<div><label for="find">Search tracks and tags</label>
<input id="find" type="search" autocomplete="off">
<ul class="hits" aria-label="Tracks found"></ul></div>
<div><h2 class="name" aria-live="polite">Click a point to hear it.</h2>
<p class="tags"></p>
<audio controls preload="none"></audio><p class="trouble" role="status"></p>
</div>
<div class="near" hidden><h2>Its nearest tracks</h2>
<p>Play one, or go there (→) for its own neighbours.</p><ol></ol></div>
<div><label for="colour">Colour by</label><select id="colour"></select>
<ul class="legend"></ul></div></aside>
"""


def page(data: Mapping[str, Any]) -> str:
  """Returns the page of a map.

  Args:
    data: of N tracks, "tracks": names; "points": [x, y] each, from 0 to 1;
      "neighbours" and "cosines": a list each, the nearest first; "tags": a list
      each; "colourings": of `music_map.colourings`; "audio": addresses, "" for
      none; "clipped": whether these are clips inside the page.
  """
  text = json.dumps(
    {**data, "palette": PALETTE}, ensure_ascii=False, separators=(",", ":")
  )
  # "</script" and "<!--" would mean something even inside a string.
  text = text.replace("<", "\\u003c")
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f"<title>What sounds alike</title>\n<style>body {{ margin: 0; }}{_STYLE}"
    f'</style>\n</head>\n<body>\n<main id="sound-map">{_BODY}'
    f'<script type="application/json">{text}</script>\n</main>\n'
    f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
  )
