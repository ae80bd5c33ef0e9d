"""Benchmarks: contenders measured in turn, in one run, and judged by their ratios.

    pip install '.[dev,bench]'; apt-get install wrk strace
    python -m benchmarks install-peers PEERS          # sandbox-agent, supervisord, circus
    python -m benchmarks --peers PEERS --json FILE --plots benchmarks/plots
    python -m benchmarks start run --scale 0.2 --checkout before=../creche-before
    python -m benchmarks budget                       # what one process costs, in counts

Everything that is missing is left out: peers, wrk, strace, matplotlib. Daemons
run with their defaults, each as a program of its own on the loopback; of
sandbox-agent the limit of 64 processes at once is raised. All of them start
`/bin/true` unless it is said otherwise.

How to read a table: a p50 is the median of the rounds' medians, `spread` what
half of the rounds gave; p10, p90 and p99 are of everything. `to first` is the
ratio to the first row, taken within each round, with its own spread: this is
the figure that another machine gives too. `own CPU` is that of the daemon
alone, until it has nothing left to do.

A machine that is busy with other things makes every start wait for a processor
and thereby levels the ratios; above each benchmark stands how busy it was just
before. Then p10 and the processor times still tell something.

How the load generators were checked: latencies are taken by one blocking
socket, with requests made beforehand, and rates by wrk. In every run of `start`
and `run` both also ask a server that answers at once with canned bytes, and the
tables say what that gave. It is a small part of the fastest daemon's figure
(about 10 µs a request, and 100,000 requests per second or more).
"""
