# Two images: `cpu` (migrate, beat, CPU worker with what a judge takes, Flower) without torch, `gpu` (GPU worker, model
# server) with it.
#
#   docker build --target cpu -t babylon-tasks:cpu .
#   docker build --target gpu -t babylon-tasks:gpu .

FROM python:3.11-slim-bookworm AS base-runtime
ENV PATH=/opt/babylon/bin:$PATH PYTHONUNBUFFERED=1
# A volume that is mounted on one of these folders takes over its owner.
RUN useradd --uid 10001 --create-home babylon \
 && install -d -o babylon -g babylon \
      /home/babylon/.babylon /home/babylon/.babylon/checkpoints \
      /home/babylon/.cache /home/babylon/.cache/huggingface
WORKDIR /home/babylon

# Dependencies come before our code, with an empty project in its place: a change of code then
# downloads nothing.
FROM python:3.11-slim-bookworm AS dependencies
# An index with other builds of a package (torch for the CPU); see docs/settings.md.
ARG PIP_EXTRA_INDEX_URL
ENV PATH=/opt/babylon/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN python -m venv /opt/babylon \
 && mkdir babylon_tasks workers migrations \
 && touch babylon_tasks/__init__.py workers/__init__.py \
 && pip install -c constraints.txt '.[judge]'

FROM dependencies AS dependencies-gpu
ARG PIP_EXTRA_INDEX_URL
RUN pip install -c constraints.txt '.[train,s3]'

FROM dependencies AS build-cpu
COPY . .
RUN pip install --no-deps --force-reinstall .

FROM dependencies-gpu AS build-gpu
COPY . .
RUN pip install --no-deps --force-reinstall .

FROM base-runtime AS cpu
COPY --from=build-cpu /opt/babylon /opt/babylon
USER babylon
CMD ["babylon", "--help"]

FROM base-runtime AS gpu
# The driver's libraries and nvidia-smi; the container runtime mounts them.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-gpu /opt/babylon /opt/babylon
USER babylon
CMD ["babylon", "--help"]
