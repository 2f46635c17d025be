"""Measuring generation side by side: contenders take turns in one run, texts are compared before speeds.

`selfspec bench`, `selfspec demo` and the scripts in benchmarks/ all measure with this package.
"""
