# The dashboard with its command line; state lives in the volume /data. docs/deployment.md says how to run it.
FROM debian:bookworm-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
COPY requirements.txt ./
RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir -r requirements.txt "psycopg[binary]>=3.2"
COPY . .
RUN .venv/bin/pip install --no-cache-dir --no-deps --editable . \
    && .venv/bin/python -m compileall -q brainmri \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin brainmri \
    && install -d -o brainmri -g brainmri -m 700 /data

ENV PATH=/app/.venv/bin:$PATH BRAINMRI_CONFIG=/app/deploy/config.yaml HOME=/tmp PYTHONDONTWRITEBYTECODE=1
USER brainmri
VOLUME /data
EXPOSE 8501 11112
HEALTHCHECK --interval=30s --start-period=60s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8501/_stcore/health', timeout=4)"]
CMD ["streamlit", "run", "Home.py", "--server.address", "0.0.0.0"]
