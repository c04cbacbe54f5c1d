"""Our trainer with the settings of our example."""

import contextlib
from pathlib import Path

import torch
import yaml
from solved import Solved, Watch, environment, seed

from app.encoding import Encoding
from app.environments import checked_interface, parsed_environment
from app.training.settings import parsed_settings
from app.training.trainer import Trainer, TrainingTask

EXAMPLES = {"CartPole-v1": "policymodel.yaml", "Acrobot-v1": "acrobot.yaml", "LunarLander-v3": "lunarlander.yaml"}

example = yaml.safe_load((Path(__file__).parents[3] / "k8s/examples" / EXAMPLES[environment()]).read_text())
settings = parsed_settings(example["spec"]["training"]["config"])
asked = parsed_environment({"id": environment()})
trainer = Trainer(TrainingTask(asked, Encoding(*checked_interface(asked)[:2]), settings, 0, seed()))
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
