# A party's image: redislink, and your program. Built from the root of the checkout:
#   docker build --file deploy/party.Dockerfile --tag registry.example/redislink-party:0.1.0 .
# and then, on top of it:  FROM registry.example/redislink-party:0.1.0
#                          COPY program.py /srv/redislink/program.py
FROM docker.io/library/python:3.11.14-slim-bookworm
COPY . /src
RUN pip install --no-cache-dir --constraint /src/constraints.txt /src \
 && rm -rf /src \
 && useradd --uid 10002 --no-create-home --shell /usr/sbin/nologin redislink
USER 10002:10002
WORKDIR /tmp
ENTRYPOINT ["redislink"]
