# A party's image: redislink, and your program. Built from the root of the checkout:
#   docker build --file deploy/party.Dockerfile --tag registry.example/redislink-party:0.2.0 .
# and then, on top of it:  FROM registry.example/redislink-party:0.2.0
#                          COPY program.py /srv/redislink/program.py
#
# The image holds an installed wheel and no source. What `docker build` sees of the checkout is in
# .dockerignore; keys, passwords and settings come when it runs, as files (kubernetes/party.yaml).
FROM docker.io/library/python:3.11.14-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev libssl-dev
WORKDIR /src
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE .gitignore ./
COPY redislink redislink
COPY examples examples
COPY deploy/requirements.txt ./
ENV PIP_NO_CACHE_DIR=1
RUN PIP_CONSTRAINT=/src/constraints.txt pip wheel --no-deps --wheel-dir /dist . \
 && python -m venv --without-pip /opt/redislink \
 && pip --python /opt/redislink/bin/python install --only-binary :all: --require-hashes -r requirements.txt \
 && pip --python /opt/redislink/bin/python install --no-deps --no-index /dist/*.whl

FROM docker.io/library/python:3.11.14-slim-bookworm
RUN useradd --uid 10002 --no-create-home --shell /usr/sbin/nologin redislink
COPY --from=build /opt/redislink /opt/redislink
ENV PATH=/opt/redislink/bin:$PATH
USER 10002:10002
WORKDIR /tmp
ENTRYPOINT ["redislink"]
