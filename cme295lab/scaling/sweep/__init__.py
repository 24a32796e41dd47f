"""The course's own scaling sweep: 25 small models on a laptop, and a prediction that is put to the test.

Read in this order: ``models`` (eleven sizes, and how the learning rate follows from the size), ``data`` (the course's
corpus as one stream), ``training`` (one run), ``plan`` (which runs), ``pool`` (two at a time), ``results`` (the stored
file), ``run`` (all of it, or a few runs again).

What N and D mean here: N is every parameter, the embedding once (it is tied to the head, so it computes); D is every
token that was read, the second reading of a text included: the longest runs read the corpus one and a half times.
Compute is 6 N D; attention among 128 tokens, which that leaves out, would add 22 % for the smallest model and 4 % for
the largest (causal count).

What is not covered: one seed per run (another one moves a loss by 0.01); one learning rate per size, whatever the
number of tokens; and laws that are exact for no model so small. Expect the two methods to disagree.
"""
