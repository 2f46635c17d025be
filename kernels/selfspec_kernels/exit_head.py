"""What an exit says: final norm, LM head and the choice of a token, with no logits in memory.

For a draft step the head is what costs: at D = 4096 and V = 128,256 its weights are 1.05 GB in bf16. They are
read once; of the logits only the best few of each block of the vocabulary are written, with the block's
maximum and its sum of exponentials, from which a last small launch takes the tokens and their probabilities.
Logits are rounded to the dtype of the hidden states, as those of the model's own head are: so it
does not show in a text, near-ties aside, whether the head's product is its own launch, as for large batches.

How the engine calls it: `LayeredDecoder.logits`, the processors' temperature and `Mode.candidates` become one
call. A draft step at a level of w nodes hands over hidden [B, w, D] after layers [0, E) and `count` = the
level's breadth; coupled mode adds `Noise` at the positions that `Mode.open` was told, greedy mode none.
`scores` are what `MarginStop` compares, `logprobs` the confidence. Greedy and coupled verification without
filters hand over all of [B, m, D] after layer L and give the tokens to `accept_choices`.
"""

from torch import Tensor

from selfspec_kernels.backend import Backend, choose_backend
from selfspec_kernels.exit_head_reference import Choices, Head, check_exit_head, reference_exit_head
from selfspec_kernels.noise import Noise


def exit_head(
    hidden: Tensor,
    head: Head,
    *,
    count: int = 1,
    temperature: Tensor | None = None,
    noise: Noise | None = None,
    backend: Backend | None = None,
) -> Choices:
    """The best `count` tokens of every row by logit / temperature + noise.

    Args:
        hidden: [B, m, D] before the norm, bf16, fp16 or fp32. Made for B * m from 1 to 16; for more the
            weights are read again for every 16.
        head: what turns hidden states into logits.
        count: tokens to choose, 1 to 8.
        temperature: [B] fp32.
        noise: Gumbel noise; equal scores go to the token that comes first, with or without it.
        backend: "triton" or "reference"; by default Triton on CUDA, the reference elsewhere.

    Raises:
        KernelInputError: shapes, dtypes, layouts or devices that do not belong together, sizes that the
            kernel does not have, or a backend that is unknown or cannot run where `hidden` is.
    """
    check_exit_head(hidden, head, count, temperature, noise)
    if choose_backend(backend, "hidden", hidden) == "reference":
        return reference_exit_head(hidden, head, count, temperature, noise)
    from selfspec_kernels import exit_head_launch

    return exit_head_launch.choose(hidden, head, count, temperature, noise)
