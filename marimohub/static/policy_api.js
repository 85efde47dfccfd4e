// What the pages about the policy ask the hub.
import { Api } from "./api.js";

export class PolicyApi extends Api {
  policy() {
    return this.json("GET", "policy");
  }

  check(text) {
    return this.json("POST", "policy/check", { text });
  }

  // revision: the one that the text was made from, 0 for none.
  apply(text, comment, revision) {
    return this.json("PUT", "policy", { text, comment, expected_revision: revision });
  }

  draft() {
    return this.json("POST", "policy/draft", {});
  }

  schema() {
    return this.json("GET", "policy/schema");
  }

  history() {
    return this.json("GET", "policy/history");
  }

  revision(number) {
    return this.json("GET", `policy/history/${number}`);
  }

  // user: null for oneself.
  explain(user) {
    return this.json("GET", "policy/explain", undefined, user === null ? {} : { user });
  }

  difference(user, other) {
    return this.json("GET", "policy/diff", undefined, { user, other });
  }

  attributes(user) {
    return this.json("GET", `people/${encodeURIComponent(user)}/attributes`);
  }

  setAttributes(user, attributes) {
    return this.json("PUT", `people/${encodeURIComponent(user)}/attributes`, { attributes });
  }

  // users: null for everybody whose access has changed.
  revoke(users) {
    return this.json("POST", "policy/revoke", users === null ? {} : { users });
  }
}
