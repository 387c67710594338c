"""Fine-tuning: the whole network learns the tags, from the labels.

  python -m ssl_music.main --config=configs/finetune.py --workdir=DIR \
    --config.encoder=WORKDIR --config.data.name=NAME

WORKDIR is that of a pre-training, whose backbone is the start; "random" starts
from an untrained one, that is supervised training from scratch, sized by the
presets "laptop" and "paper". Splits, tags and scores are a probe's.

On rendered music (95 training tracks, 33 tags, laptop preset, 200 steps, one
run each; contrastive pre-training of 100 steps), best mAP on 30 validation
tracks and mAP of that checkpoint on 35 test tracks:

  backbone_rate 0.1       .476, .401
  backbone_rate 1         .516, .385
  random, from scratch    .471, .411

against .360 of a probe of the same weights: so few tracks do not tell the rates
apart, and the usual 0.1 is kept. Validation mAP is best at step 80 of 200 where
the rate is 0.1, and for an untrained network too, which falls to .419 then.
"""

from ml_collections import ConfigDict

from ssl_music import config as defaults


def get_config(preset: str = "laptop") -> ConfigDict:
  """Returns the config of a preset, "laptop" or "paper"."""
  config = defaults.pretraining(preset)
  config.job = "finetune"
  config.encoder = "random"  # or a pre-training's workdir
  config.checkpoint = "latest"  # "latest", "best" or a step
  config.network = "student"  # or "teacher", of tasks that have one
  config.pretext.name = "supervised"
  config.pretext.head = ()  # hidden layers; a last one of the tags is added
  config.views = 1
  config.data.splits = ("train",)
  config.data.tags = ""  # prefixes of the tags to learn, "a,b"; "": all
  # How a track's segments make its score: the mean of "embeddings", "logits"
  # or "probabilities".
  config.aggregation = "embeddings"
  config.sounding = False  # only the sounding segments count
  config.resamples = 1000  # of the test tracks, for the intervals
  config.allow_missing = False  # of a benchmark's test tracks
  config.embed_batch = 64  # segments, of validation and test
  # The backbone's learning rate is so much of the head's; of an untrained one
  # always the same.
  config.optimizer.backbone_rate = 0.1
  config.optimizer.final_weight_decay = 0.04
  del config.online  # validation tracks are scored instead, by the head
  config.augment.update({"gain": 0.0, "equaliser": 0.0})
  if preset == "laptop":
    config.save_every_steps = 50  # and the validation tracks are scored
  else:
    for name in ("total", "warmup", "save_every"):
      config[f"{name}_steps"] = 0
    config.total_epochs = 100
    config.warmup_epochs = 5
    config.save_every_epochs = 5
  return config
