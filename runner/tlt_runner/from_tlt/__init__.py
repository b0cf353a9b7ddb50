"""Import of spec files of TLT and TAO: Faster R-CNN's training specs and those of dataset_convert.

Called by ``tlt import``. A spec is read (:mod:`parsing` over :mod:`text`), its names are those of one table
(:mod:`fields`), each field is translated (:mod:`translate` and its rooms) and accounted for in a report
(:mod:`report`), and the specs that belong together become one flow of manifests (:mod:`flow`). Nothing here
opens an image, a record or a model.
"""
