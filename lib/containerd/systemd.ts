/** The sockets that systemd passes to a service: those that listen, sd_listen_fds(3), and the one for news, sd_notify(3). */
import { calls } from '../kernel/calls.js';
import { Plan } from '../kernel/plan.js';
import { ask, type Task } from '../kernel/task.js';

const FIRST_DESCRIPTOR = 3;

/** Returns the descriptors of the listening sockets that systemd has passed to this process. Programs that this one starts do not get them. */
export function takeSockets(): number[] {
  const { LISTEN_PID: pid, LISTEN_FDS: count } = process.env;
  if (pid !== String(process.pid)) return [];
  for (const name of ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES']) delete process.env[name];
  return Array.from({ length: Number(count) || 0 }, (_, i) => FIRST_DESCRIPTOR + i);
}

/** Tells systemd a state, such as `READY=1`. Does nothing where nobody listens: systemd notices by itself. */
export function* notify(state: string): Task<void> {
  const { NOTIFY_SOCKET: address } = process.env;
  if (address === undefined || address === '') return;
  const plan = new Plan();
  plan.add(calls.notify, [address, state], { tolerate: 'any' });
  yield* ask(plan);
}
