# SmolLM2 pretraining on NVIDIA GPUs: CUDA devel to build, CUDA runtime to run.
#
#   docker build -t smollm2 .                                   without flash-attn (attention runs on torch's kernels)
#   docker build -t smollm2 --build-arg FLASH_ATTN=2.8.3 .      with it; compiles for FLASH_ATTN_CUDA_ARCHS, an hour on 8 cores
#   docker run --gpus all --ipc=host --user "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD:/workspace" smollm2 \
#     launch train configs/train/smollm2-135m.yaml              as you, for the image's own user may not write to $PWD
#
# Untested: this file is linted (make lint) but the image has not been built or run where it was written, for want of
# a Docker engine and of a GPU there; so neither have the flash-attn stage and the multi-node ssh set-up.

ARG CUDA=13.0.2
ARG UBUNTU=24.04

FROM nvidia/cuda:${CUDA}-cudnn-devel-ubuntu${UBUNTU} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3.12 python3.12-dev python3.12-venv g++ git ninja-build \
 && rm -rf /var/lib/apt/lists/*
RUN python3.12 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
# The pinned torch first and alone: it is most of the image and changes least.
RUN pip install --no-cache-dir -c constraints.txt "torch==$(sed -n 's/^torch==//p' constraints.txt)"
ARG FLASH_ATTN=""
ARG FLASH_ATTN_CUDA_ARCHS="90"
RUN if [ -n "$FLASH_ATTN" ]; then \
      pip install --no-cache-dir -c constraints.txt packaging psutil ninja wheel setuptools \
   && FLASH_ATTN_CUDA_ARCHS="$FLASH_ATTN_CUDA_ARCHS" MAX_JOBS=8 \
      pip install --no-cache-dir --no-build-isolation "flash-attn==$FLASH_ATTN"; \
    fi
COPY configs configs
COPY pipeline pipeline
COPY model model
COPY launch launch
COPY checkpoint checkpoint
# nvidia-ml-py tells how busy a GPU is; liger-kernel is an implementation of the loss
RUN pip install --no-cache-dir -c constraints.txt ".[s3,web]" liger-kernel nvidia-ml-py

FROM nvidia/cuda:${CUDA}-cudnn-runtime-ubuntu${UBUNTU}
# g++ and Python's headers: DeepSpeed and torch.compile build small kernels at the first start.
# openssh-client, pdsh: the deepspeed launcher reaches the other nodes with them.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3.12 python3.12-dev g++ openssh-client pdsh \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 10001 smollm2
COPY --from=build /opt/venv /opt/venv
COPY configs /opt/smollm2/configs
ENV PATH=/opt/venv/bin:$PATH PDSH_RCMD_TYPE=ssh
USER 10001
WORKDIR /workspace
ENTRYPOINT ["smollm2"]
CMD ["--help"]
