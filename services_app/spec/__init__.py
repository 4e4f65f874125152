"""What an API object is: types, wire form, defaults, validation, selectors, patches.

Plain Python: no Django, clock, network or randomness. Objects are dicts in Kubernetes' wire form throughout.
"""
