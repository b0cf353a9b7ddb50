"""Callbacks of a training: status, log file, TensorBoard.

``base`` has the interface that the loop calls and the list that guards it; ``create`` puts the list of a
training together. ``aggregate`` averages the figures of steps for all of them, ``uploader`` brings their
files to the output address, ``images`` draws the validation images that TensorBoard shows.
"""
