"""The course as files: finding it, building its notebooks from text, running them and checking what is stored.

Read in this order: `places` (where the course is and what it contains), `sources` (text to notebook cells), `outputs`
(what of an output is kept), `build` (execute and write), `checks` (what a stored notebook may not contain) and `links`,
`runner` and `index_page` (`cme295lab run`), `validation` (nbval), `release` (nbgrader's exercises), `lab` (how
JupyterLab is started), `browser` and `doctor` (the machine at hand). Students meet it through the command line,
maintainers also through `python -m cme295lab.course`, which the Makefile calls.
"""
