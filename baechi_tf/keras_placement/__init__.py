"""Places a compiled Keras model, which then trains with `fit` as before.

`place.py` is the entry. The model's own step is traced to a graph
(`step_graph.py`), planned as any other step, and its variables move to their
devices (`variables.py`). From then on Keras calls the placed graph in place of
the step (`placed_step.py`); a step that the plan does not cover, such as one on
another batch shape, takes the devices of the ops that it shares with the plan
(`carry.py`).
"""
