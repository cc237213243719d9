"""What a GPU should show of this project: correctness, speed, evaluation. `make gpu` runs it and writes records.

`plan.yaml` names the steps of each part, with what they are expected to show; `runner` runs each step in a process of
its own, bounded in time, compares, and writes one record a step. Everything runs on a CPU too, in small sizes.
"""
