"""Who watches a training, besides its status: TensorBoard and the log file.

``followers`` puts them together for the train task and keeps their mistakes from the training, ``event_file``
and ``pictures`` are what TensorBoard's files are made of, ``shipping`` brings files to the output address.
"""
