"""The measurements behind every number in the documentation: what is measured, how, and how it is shown.

``fcn-fast bench`` runs them, benchmarks/ runs the same cases under pytest-benchmark, and benchmarks/record.py keeps
their results.
"""
