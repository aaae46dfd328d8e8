/** The errors that rows expect, in short. */
import type { Reason } from '#lib/reasons.js';
import type { Refusal } from './row.js';

interface Refused {
  readonly error: Refusal;
}

export const wrongType = (text: RegExp): Refused => ({
  error: { name: 'TypeError', code: 'ERR_INVALID_ARG_TYPE', reason: 'invalid-argument', text },
});

export const wrongValue = (text: RegExp): Refused => ({
  error: { name: 'TypeError', code: 'ERR_INVALID_ARG_VALUE', reason: 'invalid-argument', text },
});

export const outOfRange = (text: RegExp): Refused => ({
  error: { name: 'RangeError', code: 'ERR_OUT_OF_RANGE', reason: 'invalid-argument', text },
});

export const conflict = (text: RegExp): Refused => ({
  error: { name: 'TypeError', code: 'ERR_INVALID_ARG_VALUE', reason: 'conflicting-options', text },
});

export const fails = (code: string, reason: Reason | 'explained', text: RegExp, path?: string): Refused => ({
  error: { name: 'OverlayError', code, reason, text, ...(path === undefined ? {} : { path }) },
});

/** Node's name for EOPNOTSUPP. */
export const lacking = (text: RegExp): Refused => fails('ENOTSUP', 'option-unsupported', text);
