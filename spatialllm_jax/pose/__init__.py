"""The pose estimator: which way an object in a picture is turned, from frozen features of its crop.

Above sources, models, training and evaluation, whose parts it puts together; only launch imports it. Whoever labels
plain pictures is handed an `estimator.Estimator` by launch, so that sources keep clear of JAX.
"""
