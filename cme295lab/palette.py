"""The colours of all widgets, figures and reports: eight that colour-blind readers tell apart, each with one meaning.

Source: Okabe and Ito 2008, "Color universal design".
"""

BLUE = "#0072B2"  # flash attention; visited
ORANGE = "#E69F00"  # now, here
GREEN = "#009E73"  # written to memory; fits
VERMILLION = "#D55E00"  # standard attention; does not fit
SKY = "#56B4E9"  # read from memory
PURPLE = "#CC79A7"  # a second flash variant
GREY = "#7F868D"  # bounds, axes: legible on a light and on a dark page
PALE = "#D9DEE3"  # what is skipped
