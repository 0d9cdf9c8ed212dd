"""The study: tasks, contenders, runs, records and tables.

It needs the extra ``hatam[bench]``; the library never imports it.
"""
