# Two targets: `cpu`, the last one and so the default, without torch; and `gpu`, with torch and CUDA.
# Each has a virtual environment, the application beside it, the checkpoints, and nothing else.
# A change of code changes only the small layer of the application.
ARG BASE=python:3.12-slim

FROM ${BASE} AS packages
# Extras of pyproject.toml that the image shall have, such as otel; several are separated by spaces.
ARG EXTRAS=""
WORKDIR /build
# Two environments: pip lives in the one that stays here.
ENV PIP_CACHE_DIR=/var/cache/pip
ENV PIP="/pip/bin/pip --python /venv/bin/python install --no-compile --constraint constraints.txt"
# Bytecode without timestamps: builders round them, Python would then compile every module again at
# every start, and a read-only root keeps nothing. Some packages ship templates that do not compile.
ENV COMPILE="-m compileall -q -j 0 --invalidation-mode unchecked-hash"
RUN python3 -m venv /pip && python3 -m venv --without-pip /venv
COPY pyproject.toml constraints.txt ./
COPY deploy/dependencies.py deploy/dependencies.py

FROM packages AS packages-gpu
RUN --mount=type=cache,target=/var/cache/pip \
    python3 deploy/dependencies.py gpu ${EXTRAS} > all.txt \
 && ${PIP} --requirement all.txt \
 && { python3 ${COMPILE} /venv || true; }

FROM packages AS packages-cpu
# OpenVINO's wheel brings plugins for other devices, readers of other formats and headers, together
# 80 MB. The network is in OpenVINO's own format and runs on the CPU.
RUN --mount=type=cache,target=/var/cache/pip \
    python3 deploy/dependencies.py ${EXTRAS} > all.txt \
 && ${PIP} --requirement all.txt \
 && cd /venv/lib/python3*/site-packages \
 && rm -r openvino/include openvino/libs/cache.json \
 && find openvino/libs -name '*_gpu_plugin.so' -delete -o -name '*_npu_plugin.so' -delete \
      -o -name '*_frontend.so*' ! -name '*_ir_frontend.so*' -delete \
 && find numpy -type d -name tests -prune -exec rm -r {} + \
 && { python3 ${COMPILE} /venv || true; }

FROM packages AS application
COPY README.md LICENSE ./
COPY app app
COPY trainer trainer
COPY deploy/client/caption_client deploy/client/caption_client
COPY model_store /model_store
RUN --mount=type=cache,target=/var/cache/pip \
    ${PIP} --no-deps --target /app . \
 && python3 ${COMPILE} /app \
 && chmod -R a+rX /app /model_store

FROM ${BASE} AS service
# Slim Python images ship the standard library without bytecode.
RUN python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash \
    "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" || true
# HOME and USER: the uid has no line in /etc/passwd, and needs none.
ENV PATH=/app/bin:/venv/bin:${PATH} \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    USER=caption \
    CAPTION_HOST=0.0.0.0
WORKDIR /srv
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["caption-service", "healthcheck"]
ENTRYPOINT ["caption-service"]
CMD ["serve"]

FROM service AS gpu
COPY --from=packages-gpu /venv /venv
COPY --from=application /app /app
COPY --from=application /model_store /srv/model_store

FROM service AS cpu
COPY --from=packages-cpu /venv /venv
COPY --from=application /app /app
COPY --from=application /model_store /srv/model_store
