// Bytes as people read them, in units of 1024: "310 MB", "1.2 GB".
const UNITS = ["KB", "MB", "GB", "TB"];

function split(count) {
  let value = count / 1024;
  let unit = 0;
  while (value >= 1023.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return [value >= 10 ? String(Math.round(value)) : String(Math.round(value * 10) / 10), UNITS[unit]];
}

export const bytes = (count) => split(count).join(" ");

// "1.2 of 4 GB"
export function of(used, most) {
  const [value, unit] = split(used);
  const [mostValue, mostUnit] = split(most);
  return unit === mostUnit ? `${value} of ${mostValue} ${unit}` : `${value} ${unit} of ${mostValue} ${mostUnit}`;
}
