/** A user without any privilege. */
export const NOBODY = 65534;
