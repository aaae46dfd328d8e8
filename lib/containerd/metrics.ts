/** Counts requests, and shows the counts in the text format of Prometheus. Pure. */
import type { StatusName } from './status.js';

/** The upper bounds of the buckets of durations, in seconds. */
const bounds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

class Histogram {
  readonly #counts = new Array<number>(bounds.length + 1).fill(0);
  #sum = 0;

  add(seconds: number): void {
    const at = bounds.findIndex((bound) => seconds <= bound);
    const bucket = at < 0 ? bounds.length : at;
    this.#counts[bucket] = (this.#counts[bucket] as number) + 1;
    this.#sum += seconds;
  }

  lines(name: string, label: string): string[] {
    let count = 0;
    const buckets = this.#counts.map((one, i) => {
      count += one;
      return `${name}_bucket{${label},le="${bounds[i] ?? '+Inf'}"} ${count}`;
    });
    return [...buckets, `${name}_sum{${label}} ${this.#sum}`, `${name}_count{${label}} ${count}`];
  }
}

/** The values that are asked for when the metrics are read. */
export interface Gauges {
  readonly running: number;
  readonly waiting: number;
  readonly connections: number;
}

export class Metrics {
  readonly #requests = new Map<string, number>();
  readonly #durations = new Map<string, Histogram>();
  readonly #start = Date.now() / 1000;

  count(method: string, status: StatusName, seconds: number): void {
    const labels = `method="${method}",code="${status}"`;
    this.#requests.set(labels, (this.#requests.get(labels) ?? 0) + 1);
    const histogram = this.#durations.get(method) ?? new Histogram();
    this.#durations.set(method, histogram);
    histogram.add(seconds);
  }

  format({ running, waiting, connections }: Gauges): string {
    const lines: string[] = [];
    const add = (type: string, name: string, help: string, values: readonly string[]): void => {
      lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`, ...values);
    };
    const gauge = (name: string, help: string, value: number) => add('gauge', name, help, [`${name} ${value}`]);
    const requests = 'overlayfs_snapshots_requests_total';
    add(
      'counter',
      requests,
      'Requests that were answered, by the code of the status.',
      Array.from(this.#requests, ([labels, count]) => `${requests}{${labels}} ${count}`),
    );
    const durations = 'overlayfs_snapshots_request_duration_seconds';
    add(
      'histogram',
      durations,
      'The time from the arrival of a request to its answer.',
      Array.from(this.#durations).flatMap(([method, histogram]) => histogram.lines(durations, `method="${method}"`)),
    );
    gauge('overlayfs_snapshots_requests_running', 'Requests that are being performed.', running);
    gauge('overlayfs_snapshots_requests_waiting', 'Requests that wait for their turn.', waiting);
    gauge('overlayfs_snapshots_connections', 'Open connections.', connections);
    gauge('process_resident_memory_bytes', 'Resident memory size in bytes.', process.memoryUsage.rss());
    gauge('process_start_time_seconds', 'Start time of the server since the epoch in seconds.', this.#start);
    return `${lines.join('\n')}\n`;
  }
}
