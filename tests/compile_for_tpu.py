"""Compiles the steps of the tasks named for four chips; prints what is in them.

A process of its own: only it may find libtpu.
"""

import contextlib
import json
import sys

import small
import tiny

from benchmarks import programs, targets

mesh = targets.make_mesh("v5e:4")
for task in sys.argv[1:]:
  config = tiny.pretraining("unused", task).to_dict()
  if task == "supervised":
    config["pretext"]["head"] = (len(tiny.TAGS),)
  # One of them has a ResNet, which takes three times as long.
  resnet = task == "contrastive"
  config["model"]["depths"] = (1,)
  with contextlib.nullcontext() if resnet else small.backbone():
    text = programs.lower_step(config, mesh).compile().as_text()
  found = {
    "task": task,
    "barriers": text.count(" opt-barrier("),
    "branches": text.count(" conditional("),
    "collectives": len(programs.collectives(text, mesh.size)),
  }
  print(json.dumps(found), flush=True)
