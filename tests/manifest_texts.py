"""Small manifests as text, for tests that change a line of them."""

TRAIN = """
apiVersion: tlt.dev/v1alpha1
kind: TrainingJob
metadata: {name: digits}
spec:
  dataset:
    uri: pvc://data/digits
    targetClassMapping: {one: one}
    imageSize: {width: 64, height: 64}
  output: {uri: pvc://data/out}
  resources: {gpus: 0}
"""
PRUNE = """
apiVersion: tlt.dev/v1alpha1
kind: PruneJob
metadata: {name: half}
spec:
  model: {trainingJobRef: {name: digits}}
  threshold: 0.5
  output: {uri: pvc://data/pruned}
"""
