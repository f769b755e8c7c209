"""All dashboards, in the order of Grafana's menu."""

from k8s.generate.supply import CLUSTER, DATA
from k8s.generate.training import CURRICULUM, PERFORMANCE, RUN

BOARDS = (RUN, PERFORMANCE, CURRICULUM, DATA, CLUSTER)
