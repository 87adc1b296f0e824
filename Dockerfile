# The server in a container, on a processor; compose.yaml uses it; see docs/guides/serving.md.
FROM python:3.11-slim

RUN useradd --home-dir /srv/deeprec --create-home deeprec
WORKDIR /srv/deeprec
COPY pyproject.toml constraints.txt README.md LICENSE app/
COPY src app/src
# The default torch brings CUDA along; pip's own variables name another index:
# docker build --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir --constraint app/constraints.txt "./app[local,serve,openai]"

USER deeprec
# Keep weights, data and the trained TRM in volumes.
RUN mkdir -p cache runs
ENV DEEPREC_CACHE=/srv/deeprec/cache
VOLUME ["/srv/deeprec/cache", "/srv/deeprec/runs"]
EXPOSE 8000
HEALTHCHECK --interval=30s --start-period=15m \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
# The container is open to its network, so the server requires DEEPREC_TOKEN.
ENTRYPOINT ["deeprec", "serve", "--set", "serve.host=0.0.0.0"]
