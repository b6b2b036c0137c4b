"""Numerical methods below `jaxmedian.theory`: quadrature, counts, series, arrangements.

Nothing here answers a public question, and nothing here is public.
"""
