"""The documented command of torchrun reaches `onestep train` with its options."""

import re

from torch.distributed.run import parse_args

from tiny import REPOSITORY


def test_torchrun_leaves_the_options_of_onestep_alone():
    text = (REPOSITORY / "docs" / "running.md").read_text()
    (command,) = re.findall(r"^```\ntorchrun (.*?)\n```", text.replace("\\\n", " "), flags=re.M | re.S)
    parsed = parse_args(command.split())
    assert (parsed.module, parsed.training_script, parsed.nproc_per_node) == (True, "onestep", "2")
    assert parsed.training_script_args[:2] == ["train", "--run"]
