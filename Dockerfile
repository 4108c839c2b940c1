# A server for MiniCPM-SALA from registries alone: Debian, Python and g++ from Docker Hub and Debian, the rest from PyPI.
# docs/guides/container.md says how to build and start it, and what needs nvcc.
ARG PYTHON_VERSION=3.12

FROM docker.io/library/python:${PYTHON_VERSION}-slim-bookworm AS build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH}
# SGLang first: its layers stay in the build cache when this project changes.
RUN pip install --no-cache-dir sglang==0.5.23
# SGLang brings an nvcc that is newer than the headers of torch's CUDA, which it then refuses. This one is theirs.
RUN pip install --no-cache-dir --no-deps nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
COPY pyproject.toml README.md LICENSE /src/
COPY sala_sglang /src/sala_sglang
COPY kernels /src/kernels
RUN pip install --no-cache-dir /src

FROM docker.io/library/python:${PYTHON_VERSION}-slim-bookworm
ARG PYTHON_VERSION
# Triton compiles its launchers with it, and nvcc the host's part of its sources.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH} \
    CUDA_HOME=/opt/venv/lib/python${PYTHON_VERSION}/site-packages/nvidia/cu13 \
    HOME=/cache
# Where compilers look for libraries; the driver's own comes with the GPU when a container starts.
RUN ln -s lib "${CUDA_HOME}/lib64" \
    && ln -s libcudart.so.13 "${CUDA_HOME}/lib/libcudart.so" \
    && mkdir "${CUDA_HOME}/lib/stubs" /cache \
    && ln -s /usr/lib/x86_64-linux-gnu/libcuda.so.1 "${CUDA_HOME}/lib/stubs/libcuda.so" \
    && useradd --uid 1000 --home-dir /cache server \
    && chown server /cache
USER server
# Arguments of sala-sglang warm, such as "--gpu H100": kernels are compiled here then, and not by the first start.
ARG WARM=""
RUN if [ -n "${WARM}" ]; then sala-sglang warm ${WARM}; fi
# Compiled kernels, of Triton, SGLang and FlashInfer: a volume keeps them for the next container.
VOLUME /cache
EXPOSE 31111
ENTRYPOINT ["sglang", "serve", "--host", "0.0.0.0", "--port", "31111", "--trust-remote-code"]
CMD ["--model-path", "/models/MiniCPM-SALA"]
