"""Buffers whose length is known only once something was learnt: memories, support vectors, trees."""

from torch import Tensor, nn


def load_any_length(module: nn.Module, *names: str) -> None:
    """Have `load_state_dict` make room for these buffers: their first dimension is the state's, the others must be the module's."""

    def make_room(module: nn.Module, state: dict[str, Tensor], prefix: str, *_unused: object) -> None:
        for name in names:
            if prefix + name in state:
                room = module.get_buffer(name)
                setattr(module, name, room.new_empty(state[prefix + name].shape[:1] + room.shape[1:]))

    module.register_load_state_dict_pre_hook(make_room)
