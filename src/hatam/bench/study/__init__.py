"""The study: the protocol of the comparison, on a queue that any number of machines may work on.

``docs/study.md`` says it in words. :mod:`.plans` has what is compared and how often, :mod:`.stages` what is run next,
:mod:`.queue` the queue, :mod:`.worker` who takes from it, and :mod:`.coordinator` who fills it.
"""
