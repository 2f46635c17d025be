"""Measuring generation side by side: contenders interleaved in one run, texts compared before speeds are shown.

`selfspec bench`, `selfspec demo` and the scripts in benchmarks/ all measure with this package.
"""
