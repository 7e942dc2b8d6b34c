# The service on CPUs, with the shipped models and what requirements.lock pins:
#   docker build -t lorasynth . && docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/keys.txt:/keys.txt:ro" lorasynth
FROM python:3.11-slim-bookworm

WORKDIR /app
COPY requirements.lock ./
ARG TORCH=2.13.0
RUN pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock \
    && pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu "torch==${TORCH}"

COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src src
COPY bundle bundle
RUN pip install --no-cache-dir --no-deps --editable . \
    && useradd --create-home --uid 1000 lorasynth && mkdir /state && chown lorasynth /state

USER 1000
ENV OMP_NUM_THREADS=1
EXPOSE 8000
HEALTHCHECK CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["lorasynth"]
CMD ["serve", "--host", "0.0.0.0", "--keys", "/keys.txt", "--state", "/state"]
