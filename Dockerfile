# The server in a container, on a processor; compose.yaml uses it, docs/serving.md says how.
FROM python:3.11-slim

RUN useradd --home-dir /srv/deeprec --create-home deeprec
WORKDIR /srv/deeprec
COPY pyproject.toml constraints.txt README.md LICENSE app/
COPY src app/src
# The torch of most systems' default index brings CUDA with it; pip's own variables name another index where there is one:
# docker build --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir --constraint app/constraints.txt "./app[local,serve,openai]"

USER deeprec
# Weights and data, and the trained TRM: keep both in volumes.
RUN mkdir -p cache runs
ENV DEEPREC_CACHE=/srv/deeprec/cache
VOLUME ["/srv/deeprec/cache", "/srv/deeprec/runs"]
EXPOSE 8000
HEALTHCHECK --interval=30s --start-period=15m \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=5)"]
# Open to the container's network, so it asks for DEEPREC_TOKEN.
ENTRYPOINT ["deeprec", "serve", "--set", "serve.host=0.0.0.0"]
