# One node. Build: docker build -t kvstore .   Run three: docker-compose up -d
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY kvstore kvstore
RUN python -m venv /opt/kvstore \
 && /opt/kvstore/bin/pip install --no-cache-dir --disable-pip-version-check . \
 && /opt/kvstore/bin/pip uninstall --yes --quiet pip setuptools

FROM python:3.11-slim-bookworm
# A fixed uid, so that a volume made by one image is readable by the next.
RUN groupadd --gid 10001 kvstore \
 && useradd --uid 10001 --gid kvstore --no-create-home --home-dir /data --shell /usr/sbin/nologin kvstore \
 && install -d -o kvstore -g kvstore -m 0750 /data
COPY --from=build /opt/kvstore /opt/kvstore
# Service names as addresses; mount another file over it for any other cluster.
COPY deploy/cluster.compose.yaml /etc/kvstore/cluster.yaml
ENV PATH=/opt/kvstore/bin:$PATH PYTHONUNBUFFERED=1
USER kvstore
VOLUME /data
EXPOSE 7401 7501
STOPSIGNAL SIGTERM
# Ready means: this node's replicas follow or lead. The node listens on its announced address, so ask there.
HEALTHCHECK --interval=2s --timeout=3s --start-period=30s --retries=5 CMD ["python", "-c", \
  "import socket, urllib.request as r; r.urlopen(f'http://{socket.gethostname()}:7401/readyz', timeout=2)"]
ENTRYPOINT ["kvstored", "--config", "/etc/kvstore/cluster.yaml", "--data", "/data"]
CMD ["--node", "n1"]
