"""Triton kernels, each beside its plain-PyTorch reference.

Of each, `X.py` dispatches, `X_reference.py` has the inputs, their checks and plain PyTorch, `X_launch.py` and
`X_kernels.py` are Triton's.

The folder above is not a package on purpose: a top-level package named `kernels` would shadow the PyPI
package of that name, which transformers imports when it is installed.
"""
