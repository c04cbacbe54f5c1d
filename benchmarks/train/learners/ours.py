"""Our trainer with its defaults."""

import contextlib

import torch
from solved import ENVIRONMENT, Solved, Watch, seed

from app.encoding import Encoding
from app.environments import checked_interface, parsed_environment
from app.settings import parsed_settings
from app.trainer import Trainer, TrainingTask

environment = parsed_environment({"id": ENVIRONMENT})
trainer = Trainer(TrainingTask(environment, Encoding(*checked_interface(environment)[:2]), parsed_settings({}), 0, seed()))
watch = Watch()
watch.start()
with contextlib.suppress(Solved):
    while True:
        iterated = trainer.iterate()
        module = trainer.module()
        with torch.no_grad():
            watch.look(
                iterated.env_steps,
                lambda seen, module=module: module.forward_inference({"obs": torch.from_numpy(seen)})["action_dist_inputs"].argmax(dim=1),
            )
trainer.close()
