# The builder makes a virtual environment and the application beside it. The image gets these two,
# the checkpoints, and nothing else. A change of code changes only the small layer.
ARG BASE=python:3.12-slim

FROM ${BASE} AS builder
# PyTorch's own CPU wheels. Set it empty for the default index, whose Linux wheels bring CUDA.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# Extras of pyproject.toml that the image shall have, such as otel; several are separated by spaces.
ARG EXTRAS=""
WORKDIR /build
# For app/captioner/steps.c; the compiler stays here.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev
COPY pyproject.toml ./
# Two environments: pip lives in the one that stays here.
ENV PIP_CACHE_DIR=/var/cache/pip
ENV PIP="/pip/bin/pip --python /venv/bin/python install --no-compile"
# Bytecode without timestamps: builders round them, Python would then compile torch again at every
# start, and a read-only root keeps nothing. Some packages ship templates that do not compile.
ENV COMPILE="-m compileall -q -j 0 --invalidation-mode unchecked-hash"
RUN --mount=type=cache,target=/var/cache/pip \
    python3 -m venv /pip \
 && python3 -m venv --without-pip /venv \
 && python3 -c "import sys, tomllib; of = tomllib.load(open('pyproject.toml', 'rb'))['project']; print(*of['dependencies'], *(one for extra in sys.argv[1:] for one in of['optional-dependencies'][extra]), sep='\n')" ${EXTRAS} > all.txt \
 && grep '^torch' all.txt > torch.txt \
 && ${PIP} ${TORCH_INDEX_URL:+--index-url ${TORCH_INDEX_URL}} --requirement torch.txt \
 && ${PIP} --requirement all.txt \
 && { python3 ${COMPILE} /venv || true; }
COPY README.md LICENSE ./
COPY app app
COPY trainer trainer
COPY model_store /model_store
RUN --mount=type=cache,target=/var/cache/pip \
    ${PIP} --no-deps --target /app . \
 && ls /app/app/captioner/steps.*.so \
 && python3 ${COMPILE} /app \
 && chmod -R a+rX /app /model_store

FROM ${BASE}
# Slim Python images ship the standard library without bytecode.
RUN python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash \
    "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" || true
COPY --from=builder /venv /venv
COPY --from=builder /app /app
COPY --from=builder /model_store /srv/model_store
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
