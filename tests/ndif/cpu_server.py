"""NDIF's model actors and controller on a CPU. Ray's workers import this module by name; it needs no tnkit."""

from functools import partial

import ray
import torch
from ndif.services.ray.deployments.controller.controller import _ControllerActor
from ndif.services.ray.sandbox import host
from ndif.services.ray.sandbox.model import SandboxModelDeployment
from nnsight.modeling.huggingface import HuggingFaceModel
from nnsight.modeling.mixins.remotable import Remotable

torch.cuda.synchronize = lambda *_, **__: None
host.spawn = partial(host.spawn, timeout=300)  # a busy machine takes longer than 30 s to start a process


def _old_signature(name):
    """Ndif 0.1.2 passes trust_remote_code beside the model key, nnsight 0.8.1 reads it from the key."""
    ask = getattr(Remotable, name).__func__
    setattr(Remotable, name, classmethod(lambda cls, *args, trust_remote_code=False: ask(cls, *args)))  # noqa: ARG005


for _name in ("describe_checkpoint", "max_tp_size"):
    _old_signature(_name)


class _OnCPU:
    CACHEABLE = False

    def load_from_disk(self):
        torch.set_num_threads(1)
        where = {"dtype": self.dtype_name, "device": "cpu"}
        model = HuggingFaceModel.from_model_key(self.model_key, dispatch=True, **where, **self.kwargs)
        model._module.requires_grad_(False)
        return model


class _Actor(_OnCPU, SandboxModelDeployment):
    pass


@ray.remote(num_cpus=0, max_restarts=0)
class SandboxActor(_Actor):
    """Runs trusted blocks beside the weights, those of strangers in a process of their own that has none."""


class _Controller(_ControllerActor):
    pass


@ray.remote(num_cpus=0, max_restarts=0, resources={"head": 1})
class Controller(_Controller):
    """Deploys the actors."""
