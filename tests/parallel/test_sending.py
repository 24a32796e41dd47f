"""What functions refer to arrives with them."""

import torch.distributed as dist

from cme295lab.parallel.launch import sending

config = {"width": 3}


def test_a_variable_with_the_name_of_a_module_of_torch_does_not_hinder() -> None:
    """cloudpickle takes `dist` and `config` for a use of torch.distributed.config, which is of a class of its own."""

    def use_both() -> tuple[int, bool]:
        return config["width"], dist.is_initialized()

    use_both.__module__ = "__main__"
    assert type(dist.config) is not type(dist)
    fn, _, _ = sending.loads(sending.dump_call(use_both, (), {}))
    assert fn() == (3, False)
