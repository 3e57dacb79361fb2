import json
import os

import torch

from napari_fmseg.core.hardware import CAPABILITY_VARIABLE
from napari_fmseg.evaluation.machine import machine_facts


def test_the_machine_is_stated_with_everything_that_a_figure_depends_on():
    facts = machine_facts(packages=("numpy", "no-such-package"))
    assert facts["device"] == "cpu"
    assert facts["processor"]
    assert facts["threads"] == torch.get_num_threads()
    assert 1 <= facts["cores"] <= (os.cpu_count() or 1)
    assert facts["capability"] == torch.backends.cpu.get_cpu_capability()
    assert facts["peak_mb"] > 10
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["no-such-package"] == "not installed"
    assert json.loads(json.dumps(facts)) == facts


def test_a_processor_that_is_used_in_part_is_said_to_be(monkeypatch):
    monkeypatch.setenv(CAPABILITY_VARIABLE, "avx2")
    facts = machine_facts()
    assert facts["limited_to"] == "avx2"
    assert facts["precision"] == "float32"
