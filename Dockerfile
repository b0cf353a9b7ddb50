# Two images from one file: `operator` (small, no TensorFlow) and `runner` (everything a training pod needs).
#
#   docker build --target operator -t tlt-operator .
#   docker build --target runner   -t tlt-runner   .
#
# BASE_IMAGE is any image with python3.11 and its venv module on PATH. For GPU nodes give the runner an NVIDIA CUDA
# base that has Python 3.11 added (apt-get install python3.11 python3.11-venv); the tests give a debootstrap one.
# Dependencies come from the hashed constraints files and sit in a layer of their own: a change to our sources adds
# a layer of a few hundred kilobytes on top, TensorFlow is neither installed nor shipped again.
#
# What a build behind a proxy needs (an index, a CA bundle) arrives as build secrets, so that none of it stays in
# a layer or in the history: `build-env` is a shell file of exports, `ca-certificates` a bundle, `pip.conf` a
# configuration. All three are optional.
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS base
RUN echo 'tlt:x:65532:65532::/tmp:/usr/sbin/nologin' >> /etc/passwd && echo 'tlt:x:65532:' >> /etc/group
# The root file system is read-only in the cluster: caches go to /tmp, bytecode was compiled at build.
ENV HOME=/tmp \
    USER=tlt \
    PATH=/opt/tlt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONFAULTHANDLER=1

# Our own wheel. The build backend is the one of constraints.txt, hash checked like everything else.
FROM base AS package
COPY constraints.txt /src/
RUN --mount=type=secret,id=build-env --mount=type=secret,id=ca-certificates --mount=type=secret,id=pip.conf \
    if [ -f /run/secrets/build-env ]; then . /run/secrets/build-env; fi \
 && python3.11 -m venv /opt/build \
 && sed -n '/^setuptools==/,/[^\\]$/p' /src/constraints.txt > /src/build.txt \
 && /opt/build/bin/pip install --no-cache-dir --require-hashes -r /src/build.txt
COPY pyproject.toml README.md LICENSE NOTICE /src/
COPY crds /src/crds
COPY operator /src/operator
COPY runner /src/runner
# The prefix is laid over the virtual environment of the same path below: its scripts already name that Python.
RUN python3.11 -m venv --without-pip /opt/tlt \
 && cd /src \
 && /opt/build/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /dist . \
 && /opt/build/bin/pip --python /opt/tlt/bin/python install --no-deps --no-index --prefix /opt/package /dist/*.whl

# The last layer of both images. tests/cluster pushes it alone when nothing below it has changed.
FROM scratch AS sources
COPY --from=package /opt/package/ /opt/tlt/

FROM base AS operator-dependencies
COPY constraints-operator.txt /opt/
RUN --mount=type=secret,id=build-env --mount=type=secret,id=ca-certificates --mount=type=secret,id=pip.conf \
    if [ -f /run/secrets/build-env ]; then . /run/secrets/build-env; fi \
 && python3.11 -m venv /opt/build && python3.11 -m venv --without-pip /opt/tlt \
 && /opt/build/bin/pip --python /opt/tlt/bin/python install --no-cache-dir --require-hashes -r /opt/constraints-operator.txt \
 && rm -rf /opt/build

# TensorFlow's C++ headers (430 MB) are for building custom ops, which nothing here does.
FROM base AS runner-dependencies
COPY constraints-runner.txt /opt/
RUN --mount=type=secret,id=build-env --mount=type=secret,id=ca-certificates --mount=type=secret,id=pip.conf \
    if [ -f /run/secrets/build-env ]; then . /run/secrets/build-env; fi \
 && python3.11 -m venv /opt/build && python3.11 -m venv --without-pip /opt/tlt \
 && /opt/build/bin/pip --python /opt/tlt/bin/python install --no-cache-dir --require-hashes -r /opt/constraints-runner.txt \
 && rm -rf /opt/build /opt/tlt/lib/python3.11/site-packages/tensorflow/include

FROM operator-dependencies AS operator
COPY --from=sources / /
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["tlt-operator"]

FROM runner-dependencies AS runner
COPY --from=sources / /
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["tlt"]
