"""The study: every contender tuned, chosen and judged on every task by one protocol.

:mod:`.plans` says how much is spent, :mod:`.stages` what each stage runs, :mod:`.leader` leads from stage to stage,
:mod:`.worker` does the runs, :mod:`.storage` is Optuna's storage between the two.
"""
