# The server in a container; docs/serving.md has the lines that build and run it.
FROM python:3.11-slim
# serve,cuda12 for GPUs; serve,tpu for TPUs
ARG EXTRAS=serve
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY spatialllm_jax spatialllm_jax
COPY launch launch
COPY convert convert
RUN pip install --no-cache-dir -c constraints.txt -e ".[$EXTRAS]"
USER nobody
# Everything is compiled before the server listens: minutes with a large model.
HEALTHCHECK --start-period=15m CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["python", "-m", "launch.serve", "--host", "0.0.0.0", "--compilation-cache", "/tmp/xla"]
